"""One study per file: a frozen dataclass `Config` and `run(config)`; the command line finds them by walking this folder."""
