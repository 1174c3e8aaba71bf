"""The demo: three agents, each a process of its own, turn a question into a cited report. No model is needed."""
