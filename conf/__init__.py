"""The Hydra configuration tree: engine, model, profile, workload, policies, experiments."""
