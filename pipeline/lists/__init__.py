"""Which rows are prepared: manifests, uniqueness, the plan and its cost."""
