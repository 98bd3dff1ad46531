"""`python -m tests.support.sbom` prints the software bill of materials of the service, in the format of CycloneDX 1.6.

It lists what requirements.txt and those of the extras lock, with the hashes that pip checks, the licences of
docs/licenses.md, and the dependencies; and the packages that the built console contains.
"""

import base64
import json
import subprocess
from collections.abc import Iterable

from cyclonedx.contrib.hash.factories import HashTypeFactory
from cyclonedx.contrib.license.factories import LicenseFactory
from cyclonedx.model import ExternalReference, ExternalReferenceType, HashAlgorithm, HashType, XsUri
from cyclonedx.model.bom import Bom
from cyclonedx.model.component import Component, ComponentScope, ComponentType
from cyclonedx.output.json import JsonV1Dot6
from packageurl import PackageURL

from app.config import ROOT
from tests.support.licenses import documented_licenses
from tests.support.locks import RUN_TIME, SERVICE, Package, locked_packages

BUNDLED = ("preact", "@fontsource-variable/inter")  # in app/static/console
_LICENSES, _HASHES = LicenseFactory(), HashTypeFactory()


def bill_of_materials() -> Bom:
    """The service, its packages and those of the extras, which are optional."""
    bom = Bom()
    service = Component(
        name="order-service",
        type=ComponentType.APPLICATION,
        bom_ref="order-service",
        version=_revision(),
        licenses=[_LICENSES.make_from_string("MIT")],
    )
    bom.metadata.component = service
    licenses = documented_licenses()
    required = locked_packages(SERVICE)
    packages = locked_packages(*RUN_TIME)
    components = {
        name: _component(package, licenses[name], is_required=name in required) for name, package in packages.items()
    }
    console = [_bundled(name, licenses[name]) for name in BUNDLED]
    bom.components.update(components.values(), console)
    for name, component in components.items():
        bom.register_dependency(component, [components[n] for n, p in packages.items() if name in p.required_by])
    direct = [c for n, c in components.items() if any(by.startswith("requirements") for by in packages[n].required_by)]
    bom.register_dependency(service, [*direct, *console])
    return bom


def _component(package: Package, license_: str, *, is_required: bool) -> Component:
    return _library(
        PackageURL("pypi", name=package.name, version=package.version),
        f"https://pypi.org/project/{package.name}/{package.version}/",
        license_,
        [_HASHES.from_composite_str(hash_) for hash_ in package.hashes],
        ComponentScope.REQUIRED if is_required else ComponentScope.OPTIONAL,
    )


def _bundled(name: str, license_: str) -> Component:
    lock = json.loads((ROOT / "console" / "package-lock.json").read_text())
    entry = lock["packages"][f"node_modules/{name}"]
    namespace, _, short = name.rpartition("/")
    digest = base64.b64decode(entry["integrity"].removeprefix("sha512-"))
    return _library(
        PackageURL("npm", namespace or None, short, entry["version"]),
        f"https://www.npmjs.com/package/{name}/v/{entry['version']}",
        license_,
        [HashType(alg=HashAlgorithm.SHA_512, content=digest.hex())],
    )


def _library(
    purl: PackageURL,
    page: str,
    license_: str,
    hashes: Iterable[HashType],
    scope: ComponentScope = ComponentScope.REQUIRED,
) -> Component:
    """A library with the hashes of all its files in the registry, of which an installation uses one."""
    reference = ExternalReference(type=ExternalReferenceType.DISTRIBUTION, url=XsUri(page), hashes=hashes)
    return Component(
        name=purl.name,
        group=purl.namespace,
        version=purl.version,
        bom_ref=purl.to_string(),
        purl=purl,
        scope=scope,
        licenses=[_LICENSES.make_from_string(license_)],
        external_references=[reference],
    )


def _revision() -> str:
    """The newest tag, the number of commits since, and the commit."""
    command = ["git", "describe", "--tags", "--always", "--dirty"]
    return subprocess.run(command, cwd=ROOT, capture_output=True, text=True, check=True).stdout.strip()


if __name__ == "__main__":
    print(JsonV1Dot6(bill_of_materials()).output_as_string(indent=2))
