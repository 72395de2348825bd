"""What is kept, so that nothing is lost: plain tensors and data."""
