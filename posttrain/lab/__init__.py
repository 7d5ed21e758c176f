"""Running experiments: worlds at each scale, stages, arms over seeds, the main job."""
