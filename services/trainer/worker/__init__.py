"""The trainer's worker: leases jobs, runs pipelines in processes of their own, reports and publishes."""
