/* Linked into the static binary by scripts/release.
 *
 * glibc looks names up by the modules that /etc/nsswitch.conf names. Two of them are part of it; a
 * static program loads others from the system, and crashes where that has another glibc. So these
 * two it is, whatever the file says: /etc/hosts, and DNS as /etc/resolv.conf says.
 */
#include <nss.h>

__attribute__((constructor)) static void choose_modules(void)
{
    __nss_configure_lookup("hosts", "files dns");
    __nss_configure_lookup("passwd", "files");
}
