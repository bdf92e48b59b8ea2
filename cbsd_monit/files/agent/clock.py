"""A moment by both clocks: within a boot the monotonic one counts, and no jump of the other."""

from collections import namedtuple

SKEW = 300  # seconds by which the clocks of two nodes may differ


class Moment(namedtuple("Moment", "t m b")):
    """``t`` seconds since 1970, ``m`` monotonic seconds, ``b`` the id of the boot."""

    def stamp(self):
        return {"t": round(self.t, 3), "m": round(self.m, 3), "b": self.b}

    def age(self, stamp):
        """Seconds since ``stamp``; infinite for None, and for one that lies in the future."""
        if not stamp:
            return float("inf")
        if stamp.get("b") == self.b:
            return self.m - stamp["m"]
        age = self.t - stamp["t"]  # of another boot or node, whose clock may differ a little
        return max(0.0, age) if age > -SKEW else float("inf")
