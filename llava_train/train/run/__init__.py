"""A run's stages and its folder: what is left to do, one start at a time, jobs of SLURM, how it stands."""
