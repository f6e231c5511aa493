"""Durable state: relations, the token journal and the audit log."""
