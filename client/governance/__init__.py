"""What the site allows and what it has spent: policy, approvals, ledger, and whether they are the newest."""
