def handler(event, context):
    """How many primes there are below ``body.below``, by a sieve."""
    below = int((event["body"] or {}).get("below", 1_000_000))
    if not 2 <= below <= 20_000_000:
        raise ValueError("'below' is a number from 2 to 20,000,000")
    sieve = bytearray([1]) * below
    sieve[0] = sieve[1] = 0
    for number in range(2, int(below**0.5) + 1):
        if sieve[number]:
            sieve[number * number :: number] = bytes(len(range(number * number, below, number)))
    return {"below": below, "primes": sum(sieve)}
