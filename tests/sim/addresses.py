"""CBSD's reading of `ip4_addr` (subr/tools.subr, subr/nc.subr) and its pool of addresses."""

PRIVATE = ((10 << 24, 8), (172 << 24 | 16 << 16, 12), (192 << 24 | 168 << 16, 16))
UNRESOLVED = ("dhcp", "dhcpv6", "realdhcp")


def without_interface(text):
    """`em0#10.0.0.3/24` -> `10.0.0.3/24`; in a mixed list only the items with `#` survive."""
    special = [item.rpartition("#")[2] for item in text.split(",") if item.find("#") > 0]
    return ",".join(special) or text


def bare(item):
    """`em0#10.0.0.3/24` -> `10.0.0.3`."""
    return item.rpartition("#")[2].split("/")[0]


def family(address):
    """4, 6, or 0 for what CBSD does not take for an address. There is no check of the range."""
    if address.count(".") >= 3:
        octets = address.split(".")
        valid = all(len(o) < 4 and o.isascii() and o.isdigit() for o in octets)
        return 4 if valid and len(octets) == 4 else 0
    return 6 if ":" in address else 0


def number(address):
    """An IPv4 address as a number; octets above 255 are not refused, and spill over."""
    value = 0
    for octet in address.split("."):
        value = value * 256 + int(octet)
    return value


def is_private(address):
    return any(number(address) >> (32 - bits) == net >> (32 - bits) for net, bits in PRIVATE)


class Addresses:
    """The facts that hooks get about an `ip4_addr`, and the items CBSD complains about."""

    def __init__(self, ip4_addr):
        # CBSD exports ipv6_first_public and ipv6_first_private, but never computes them.
        kinds = ("first_public", "first_private", "first")
        self.facts = {f"ipv{version}_{kind}": "" for version in (4, 6) for kind in kinds}
        self.known, self.unknown = [], []
        for item in filter(None, ip4_addr.replace(" ", ",").split(",")):
            item = without_interface(item)
            address = item.split("/")[0]
            kind = family(address)
            if kind:
                self.known.append(item)
                self._note(kind, address)
            elif item.lower() not in UNRESOLVED:
                self.unknown.append(item)

    def _note(self, kind, address):
        names = [f"ipv{kind}_first"]
        if kind == 4:
            names.append(f"ipv4_first_{'private' if is_private(address) else 'public'}")
        self.facts.update({name: self.facts[name] or address for name in names})

    def loopback(self):
        """The first IPv4 address when it is one this machine can have, else an empty text."""
        first = self.facts["ipv4_first"]
        return first if first.startswith("127.") else ""


def lease(pool, used):
    """The first free address of a pool; `used` are the `ip4_addr` of all environments."""
    network, _, bits = pool.partition("/")
    base = number(network)
    items = [item for text in used for item in text.split(",")]
    taken = set(map(bare, items))
    for offset in range(1, 2 ** (32 - int(bits)) - 1):
        value = base + offset
        address = ".".join(str(value >> shift & 255) for shift in (24, 16, 8, 0))
        if address not in taken:
            return address
    return None
