"""What training costs: FLOPs and memory counted from shapes, and times and bytes measured beside LoRA."""
