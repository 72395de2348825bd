"""The hands on the model; PEFT is spoken here and in `record.export`, nowhere else."""
