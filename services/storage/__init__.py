"""The only owner of datasets, models, results, history, identities and the audit log."""
