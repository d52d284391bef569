"""What ``containerpub up`` runs on: one data folder, and every process of an installation as a watched child."""
