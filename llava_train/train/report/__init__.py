"""What people see of a run: metrics of each step, scores of each stage, pictures and curves at its end."""
