"""Jobs measured: what one costs besides its own work, beside other queues, and what reading them costs."""
