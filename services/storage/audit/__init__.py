"""Who did what: a log that only grows, each line sealed with the one before it."""
