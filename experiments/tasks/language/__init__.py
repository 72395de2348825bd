"""Language tasks, one a file: how their rows become prompts with candidate answers; tasks are found by walking this folder."""
