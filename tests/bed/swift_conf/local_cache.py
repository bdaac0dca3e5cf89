"""Paste filter: what memcached is to Swift, inside the proxy's one process. Without it each request asks thrice."""

import json
import time


class LocalCache:
    """The methods of swift.common.memcached.MemcacheRing that the proxy calls."""

    def __init__(self):
        self._kept = {}

    def get(self, key, **_):
        until, text = self._kept.get(key, (0, "null"))
        return json.loads(text) if until > time.time() else None

    def set(self, key, value, time=0, **_):
        self._put(key, value, time)

    def incr(self, key, delta=1, time=0):
        value = max((self.get(key) or 0) + delta, 0)
        self._put(key, value, time)
        return value

    def delete(self, key, **_):
        self._kept.pop(key, None)

    def _put(self, key, value, seconds):
        # as text, like memcached: what is taken out is never what was put in
        self._kept[key] = (time.time() + (seconds or 1e9), json.dumps(value))


def filter_factory(_conf, **_local):
    cache = LocalCache()

    def factory(app):
        def serve(env, start_response):
            env["swift.cache"] = cache
            return app(env, start_response)

        return serve

    return factory
