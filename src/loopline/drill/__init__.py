"""`loopline drill`: play the whole loop with real parts on one machine, from drifted traffic to promotion and rollback."""
