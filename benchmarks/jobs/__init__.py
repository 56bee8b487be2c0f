"""How jobs are served: what one costs besides its own work, beside other queues; reading; estimates."""
