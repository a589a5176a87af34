"""Families: what differs between the architectures of denoisers, one file each, and nothing else."""
