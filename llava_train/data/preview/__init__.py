"""What people see of their data before a training: samples as text, a page, and the look of `check` at records."""
