"""Where it runs: the job under real Slurm, in a real container, under real Prometheus."""
