"""A model that serves is replaced by another: shadow, canary, promotion, rollback. See docs/rollout.md."""
