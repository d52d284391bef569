def handler(event, context):
    """``event`` has body, query, headers, method and path; whatever JSON can say may be returned."""
    name = (event["body"] or {}).get("name", "world")
    context.logger.info("greeting %s", name)
    return {"greeting": f"Hello, {name}!"}
