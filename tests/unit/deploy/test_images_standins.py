"""Stand-ins define what is asked for and nothing else."""

from __future__ import annotations

from deploy.images.standins import StandIn, Symbol, source, undefined, version_script

NM = """\

                 w __cxa_finalize@GLIBC_2.2.5
                 U malloc@GLIBC_2.2.5
                 U xmlFreeDoc@LIBXML2_2.4.30
                 U xmlDocGetRootElement@LIBXML2_2.4.30
                 U xmlNewThing@LIBXML2_2.5.0
                 U Z3_mk_config
"""
XML = StandIn("libxml2.so.2", ("xml",))
Z3 = StandIn("libz3.so.4", ("Z3_",))


def test_nm_is_read_with_versions() -> None:
    """Undefined and weak ones."""
    assert Symbol("xmlFreeDoc", "LIBXML2_2.4.30") in undefined(NM)
    assert Symbol("Z3_mk_config") in undefined(NM)
    assert len(undefined(NM)) == 6


def test_each_function_ends_the_process_with_its_name() -> None:
    """Never reached; should it be, one sees which."""
    text = source(Z3, undefined(NM))
    assert 'void Z3_mk_config(void) { gone("Z3_mk_config"); }' in text
    assert "xml" not in text


def test_versions_are_those_asked_for() -> None:
    """ld.so compares them."""
    assert version_script(XML, undefined(NM)) == (
        "LIBXML2_2.4.30 { global: xmlDocGetRootElement; xmlFreeDoc; };\n"
        "LIBXML2_2.5.0 { global: xmlNewThing; };\n"
    )
    assert version_script(Z3, undefined(NM)) == ""
