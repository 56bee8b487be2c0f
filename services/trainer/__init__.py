"""The trainer: jobs, their lifecycle and events (`api`), and the program that runs them (`worker`)."""
