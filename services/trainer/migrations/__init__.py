"""Alembic's steps; run by `services.trainer.migrate`."""
