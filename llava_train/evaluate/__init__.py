"""A checkpoint that answers questions: answers, scores with intervals, a page, evaluations side by side."""
