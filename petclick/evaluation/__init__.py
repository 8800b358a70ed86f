"""The challenge's evaluation as a tool: cases, protocols, scores, comparison, report."""
