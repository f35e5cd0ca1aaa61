"""Records as samples, and samples as ids and labels."""
