"""What each study's report says: sentences, tables and figures, all derived from its records."""
