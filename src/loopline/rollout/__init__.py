"""Replace the bundle of a served model by another: shadow, canary, promotion, rollback. See docs/rollout.md."""
