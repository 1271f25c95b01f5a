def describe_dry_run(c):
    return ""
