"""The certificate authority: a root kept safe, CSRs checked, identities proven, leaves signed."""
