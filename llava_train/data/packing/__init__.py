"""Which samples go together, and when: packs within a budget, the order of steps, the plan of an epoch."""
