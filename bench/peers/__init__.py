"""The same order service as others would write it: each served, measured and judged like ours."""
