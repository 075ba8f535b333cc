"""The audit log: what happened, in order, in a chain of hashes that shows every later change.

An action writes its entries into `audit_outbox` in its own transaction (`outbox.insert`); one worker per process
(`worker.AuditWorker`) moves them into `audit_log`, hash by hash (`log`, `chain`). `verify` recomputes all of it.
Nothing here decides what is audited: that is the business of whoever performs the action.
"""
