"""One script a stage: `python -m stages.<name>`, run by DVC in the order of dvc.yaml."""
