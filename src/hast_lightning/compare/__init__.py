"""Many runs side by side: tables and plots, with published numbers beside ours."""
