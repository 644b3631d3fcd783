"""What of a gin configuration acts, on which class, and what a run reads."""
