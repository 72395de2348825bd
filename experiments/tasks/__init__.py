"""Problems to adapt a model to, one per file, and the order in which their rows are visited."""
