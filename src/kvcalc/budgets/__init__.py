"""Memory budgets: what a file states, what a run makes of it, and what changed since a baseline."""
