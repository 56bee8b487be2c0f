"""How jobs are served: latency, throughput, estimates."""
