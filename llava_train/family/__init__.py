"""What differs from one model family to the next. Other rooms import `base` and `registry` alone."""
