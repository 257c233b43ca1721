"""What many scenes, tasks, runs and files cost the tools around the pipeline, by simulation.

The numbers behind docs/scaling.md. Nothing is mapped or learned here: DVC, Prefect, MLflow and the file
system are given as many things as a larger job would have, and next to no bytes.
"""
