"""What the demo's logs can say: 15 systems, 77 log lines, each with its meaning, its cause and what to do about it.

`{name}` stands for a random value, whose kind is the longest tail of the name in demo_data.KINDS: `{src_ip}` is an `ip`.
A name has one value in a line and in its explanations, which is what makes an answer true of its log, and learnable.
"""

# ruff: noqa: E501
# A log line is easier to read, and to search for, when it is not folded.

from typing import NamedTuple


class Event(NamedTuple):
    log: str  # the line
    says: str  # what happened: a clause
    why: str  # what led to it: a clause
    do: tuple[str, ...]  # what to do: imperatives; empty for a normal event

    @property
    def is_fault(self) -> bool:
        return bool(self.do)


def normal(log: str, says: str, why: str) -> Event:
    return Event(log, says, why, ())


def fault(log: str, says: str, why: str, *do: str) -> Event:
    return Event(log, says, why, do)


EVENTS: dict[str, tuple[Event, ...]] = {
    "HDFS": (
        normal(
            "INFO dfs.DataNode$DataXceiver: Receiving block {block} src: /{src_ip}:{src_port} dest: /{dest_ip}:50010",
            "the DataNode at {dest_ip} is receiving block {block} from {src_ip}",
            "a client or another DataNode at {src_ip} opened a write pipeline for the block",
        ),
        normal(
            "INFO dfs.DataNode$PacketResponder: PacketResponder {index} for block {block} terminating",
            "packet responder {index} of block {block} has finished",
            "every packet of block {block} was acknowledged, so the responder is no longer needed",
        ),
        normal(
            "INFO dfs.FSNamesystem: BLOCK* NameSystem.addStoredBlock: blockMap updated: {ip}:50010 is added to {block} size {size}",
            "the NameNode recorded that {ip} stores a replica of block {block} with {size} bytes",
            "the DataNode at {ip} reported the block after the write was complete",
        ),
        fault(
            "WARN dfs.DataNode$DataXceiver: {ip}:50010:Got exception while serving {block} to /{client_ip}:",
            "the DataNode at {ip} failed while it served block {block} to {client_ip}",
            "the client at {client_ip} closed the connection early, or the network between {ip} and {client_ip} is unstable",
            "check the client log at {client_ip} for a time-out or an early close",
            "test the network between {ip} and {client_ip} for packet loss",
            "run hdfs fsck for block {block} to confirm that its replicas are healthy",
        ),
        fault(
            "WARN dfs.FSNamesystem: BLOCK* NameSystem.delete: {block} has only {index} of 3 replicas on live nodes, last seen at {ip}",
            "block {block} has {index} of 3 replicas left, so it is under-replicated",
            "a DataNode such as {ip} stopped reporting, by a crash, a disk failure or a network partition",
            "see in the NameNode interface whether the DataNode at {ip} is dead",
            "restart the DataNode at {ip} or replace its failed disk",
            "let the NameNode replicate block {block} and watch the under-replicated count fall",
        ),
    ),
    "Spark": (
        normal(
            "INFO executor.Executor: Running task {task}.0 in stage {stage}.0 (TID {task_id})",
            "an executor started task {task} of stage {stage} under task id {task_id}",
            "the driver scheduled the next pending task of stage {stage} on a free core",
        ),
        normal(
            "INFO storage.MemoryStore: Block broadcast_{index} stored as values in memory (estimated size {kib} KB, free {mib} MB)",
            "broadcast block {index} of {kib} KB was put into memory and {mib} MB remain free",
            "the driver sent a broadcast variable that the tasks of this executor need",
        ),
        normal(
            "INFO executor.Executor: Finished task {task}.0 in stage {stage}.0 (TID {task_id}). {size} bytes result sent to driver",
            "task {task} of stage {stage} finished and returned {size} bytes to the driver",
            "the task processed its partition without an error",
        ),
        fault(
            "ERROR executor.CoarseGrainedExecutorBackend: RECEIVED SIGNAL TERM after {sec} s, executor {index} on {host} is shutting down",
            "executor {index} on {host} was told to terminate after {sec} seconds",
            "the cluster manager took the container back, by preemption or because it exceeded its memory limit",
            "look in the node manager log of {host} for the reason why the container was killed",
            "raise spark.executor.memoryOverhead if the memory limit was exceeded",
            "enable dynamic allocation so that lost executors are replaced",
        ),
        fault(
            "WARN scheduler.TaskSetManager: Lost task {task}.0 in stage {stage}.0 (TID {task_id}, {host}): java.lang.OutOfMemoryError: Java heap space",
            "task {task} of stage {stage} ran out of Java heap on {host}",
            "the partition was too large for the executor memory, often because of skewed keys",
            "raise spark.executor.memory or lower the number of cores per executor",
            "repartition the input of stage {stage} into smaller partitions",
            "check the keys of the shuffle for skew",
        ),
    ),
    "Hadoop": (
        normal(
            "INFO [AsyncDispatcher event handler] org.apache.hadoop.mapreduce.v2.app.job.impl.TaskAttemptImpl: attempt_{job}_m_{task_id} TaskAttempt Transitioned from RUNNING to SUCCEEDED",
            "map attempt {task_id} of job {job} changed from RUNNING to SUCCEEDED",
            "the map task read its whole input split and committed its output",
        ),
        normal(
            "INFO [main] org.apache.hadoop.mapreduce.v2.app.MRAppMaster: Created MRAppMaster for application appattempt_{job}_{index}",
            "the application master for attempt {index} of application {job} was created",
            "the resource manager granted the first container of the application",
        ),
        fault(
            "WARN [LeaseRenewer:{user}@{host}:9000] org.apache.hadoop.hdfs.LeaseRenewer: Failed to renew lease for [DFSClient_NONMAPREDUCE_{number}] for {sec} seconds. Will retry shortly ...",
            "the HDFS client {number} of user {user} could not renew its lease for {sec} seconds",
            "the NameNode on {host}:9000 does not answer, because it is down, in a long garbage collection or unreachable",
            "test whether port 9000 of {host} can be reached from this node",
            "check the NameNode log on {host} for garbage collection pauses",
            "restore the NameNode before the lease limit, or the files open for {user} are closed",
        ),
        fault(
            "ERROR [RMCommunicator Allocator] org.apache.hadoop.mapreduce.v2.app.rm.RMContainerAllocator: ERROR IN CONTACTING RM. {host}:8030 failed on connection exception after {index} retries",
            "the application master could not reach the resource manager at {host}:8030 after {index} retries",
            "the resource manager on {host} is stopped, or a firewall or DNS fault blocks the connection",
            "check that the resource manager process runs on {host}",
            "verify name resolution and the firewall rule for port 8030",
            "enable resource manager high availability to survive the loss of {host}",
        ),
        fault(
            "WARN [ContainersMonitor] org.apache.hadoop.yarn.server.nodemanager: Container container_{job}_01_{task_id} is running beyond physical memory limits. Current usage: {used_mib} MB of 2048 MB",
            "container {task_id} of application {job} uses {used_mib} MB, which is beyond its limit of 2048 MB",
            "the task needs more memory than its container was granted",
            "raise mapreduce.map.memory.mb above {used_mib} MB",
            "set the Java heap to about 80 percent of the container size",
            "look for a memory leak or a record that is too large",
        ),
    ),
    "Zookeeper": (
        normal(
            "INFO [NIOServerCxn.Factory:0.0.0.0/0.0.0.0:2181:NIOServerCnxn] - Closed socket connection for client /{ip}:{port} which had sessionid {session}",
            "the server closed the connection of client {ip}:{port} with session {session}",
            "the client ended session {session} or moved it to another server",
        ),
        normal(
            "INFO [CommitProcessor:{index}:ZooKeeperServer] - Established session {session} with negotiated timeout {limit_ms} for client /{ip}:{port}",
            "client {ip}:{port} established session {session} with a timeout of {limit_ms} ms",
            "the client connected and the quorum agreed on the session",
        ),
        fault(
            "WARN [RecvWorker:{index}:QuorumCnxManager$RecvWorker] - Connection broken for id {index}, my id = {my_index}, error = java.io.EOFException",
            "server {my_index} lost its quorum connection to server {index}",
            "server {index} stopped or restarted, or the network between the two servers failed",
            "check that server {index} is running and look at the end of its log",
            "test the election port between server {my_index} and server {index}",
            "make sure that a majority of the ensemble stays available",
        ),
        fault(
            "WARN [SyncThread:{index}:FileTxnLog] - fsync-ing the write ahead log in SyncThread:{index} took {slow_ms}ms which will adversely effect operation latency",
            "the sync thread of server {index} needed {slow_ms} ms to write its transaction log",
            "the disk that holds the transaction log is slow or shared with other writers",
            "put the transaction log on a disk of its own",
            "measure the write latency of the disk with iostat",
            "look for backups or other heavy writers at that time",
        ),
        fault(
            "ERROR [LearnerHandler-/{ip}:{port}:LearnerHandler] - Unexpected exception causing shutdown while sock still open, follower silent for {slow_ms} ms",
            "the leader dropped follower {ip}, which was silent for {slow_ms} ms",
            "the follower at {ip} was stalled by garbage collection, a slow disk or a network fault",
            "check the follower at {ip} for long garbage collection pauses",
            "raise syncLimit if the network is slow by nature",
            "confirm that {ip} has joined the ensemble again",
        ),
    ),
    "OpenSSH": (
        normal(
            "sshd[{pid}]: Accepted publickey for {user} from {ip} port {port} ssh2",
            "user {user} logged in with a public key from {ip} port {port}",
            "the key offered by {user} is listed in authorized_keys",
        ),
        normal(
            "sshd[{pid}]: Received disconnect from {ip}: 11: Bye Bye [preauth]",
            "the client at {ip} disconnected before it authenticated",
            "the client ended the connection itself, as scanners and monitoring probes do",
        ),
        fault(
            "sshd[{pid}]: Failed password for invalid user {bad_user} from {ip} port {port} ssh2",
            "a login as {bad_user}, which does not exist here, was refused for {ip}",
            "somebody at {ip} is guessing user names and passwords",
            "block {ip} in the firewall or with fail2ban",
            "disable password authentication in sshd_config",
            "search the log for an accepted login from {ip}",
        ),
        fault(
            "sshd[{pid}]: PAM {fails} more authentication failures; logname= uid=0 euid=0 tty=ssh ruser= rhost={ip} user={user}",
            "{fails} more logins as {user} from {ip} failed",
            "a password guessing attack from {ip} is aimed at the account {user}",
            "block {ip} and limit the number of tries with MaxAuthTries",
            "make sure that {user} has a strong password or only uses keys",
            "check whether {user} logged in from {ip} afterwards",
        ),
        fault(
            "sshd[{pid}]: reverse mapping checking getaddrinfo for {host} [{ip}] failed - POSSIBLE BREAK-IN ATTEMPT!",
            "the name {host} that belongs to {ip} does not resolve back to {ip}",
            "the DNS records of {ip} are inconsistent, by mistake or because the name {host} is forged",
            "look up {ip} and {host} to compare their DNS records",
            "watch further connections from {ip}",
            "allow SSH only from known networks",
        ),
    ),
    "Linux": (
        normal(
            "systemd[1]: Started Session {number} of user {user}.",
            "systemd started session {number} for user {user}",
            "user {user} logged in or a scheduled job of {user} began",
        ),
        normal(
            "CROND[{pid}]: ({user}) CMD (run-parts {dir_path})",
            "cron ran the jobs in {dir_path} as {user} with process id {pid}",
            "the schedule in the crontab of {user} was due",
        ),
        fault(
            "kernel: Out of memory: Kill process {pid} ({process}) score {percent} or sacrifice child",
            "the kernel killed process {pid} ({process}) because memory was exhausted",
            "the processes of this machine, {process} most of all, need more memory than there is",
            "check how much memory {process} used before it was killed",
            "set a memory limit for {process} or add memory to the machine",
            "restart {process} and watch its memory",
        ),
        fault(
            "kernel: EXT4-fs error (device {disk}{index}): ext4_find_entry:{number}: inode #{inode}: comm {process}: reading directory lblock 0",
            "the ext4 file system on {disk}{index} could not read the directory with inode {inode} for {process}",
            "the disk {disk} has failing sectors or the file system is damaged",
            "read the health of {disk} with smartctl",
            "unmount {disk}{index} and run fsck on it",
            "restore the files of inode {inode} from a backup if fsck removes them",
        ),
        fault(
            "kernel: CPU{index}: Core temperature above threshold, cpu clock throttled (total events = {number})",
            "CPU {index} became too hot and was throttled, {number} times in total",
            "the cooling is not sufficient, by a broken fan, dust or hot air at the inlet",
            "check the fans and the inlet temperature",
            "clean the heat sink of CPU {index}",
            "move load away from this machine until it is cool",
        ),
    ),
    "Apache": (
        normal(
            "[notice] workerEnv.init() ok {dir_path}/workers2.properties",
            "the mod_jk worker environment was set up from {dir_path}/workers2.properties",
            "the web server started or was reloaded",
        ),
        normal(
            "[notice] jk2_init() Found child {pid} in scoreboard slot {index}",
            "child process {pid} was found in scoreboard slot {index}",
            "a new child of the web server registered itself",
        ),
        fault(
            "[error] mod_jk child workerEnv in error state {index}",
            "the worker environment of a mod_jk child is in error state {index}",
            "the connector cannot reach its Tomcat back end, or its configuration is wrong",
            "check that Tomcat runs and listens on its AJP port",
            "compare workers2.properties with the host and port of Tomcat",
            "reload the web server and look for error state {index} again",
        ),
        fault(
            "[error] [client {ip}] Directory index forbidden by rule: {dir_path}/",
            "client {ip} asked for a listing of {dir_path}, which is forbidden",
            "{dir_path} has no index file and Options -Indexes is set, and {ip} may be a scanner",
            "add an index file if {dir_path} is meant to be public",
            "see what else {ip} requested",
            "block {ip} if it scans the site",
        ),
        fault(
            "[error] [client {ip}] script not found or unable to stat: {dir_path}/{process}.cgi",
            "client {ip} requested the script {process}.cgi, which is not in {dir_path}",
            "a link is out of date, or {ip} probes for vulnerable scripts",
            "check whether a page links to {process}.cgi",
            "see what else {ip} requested",
            "remove the script alias if no script is needed",
        ),
    ),
    "BGL": (
        normal(
            "RAS KERNEL INFO {number} double-hummer alignment exceptions",
            "the kernel counted and corrected {number} double-hummer alignment exceptions",
            "the application uses data that is not aligned to 16 bytes",
        ),
        normal(
            "RAS KERNEL INFO generating core.{number} on {node}",
            "node {node} is writing the core file core.{number}",
            "a process of the job ended and its state is kept for debugging",
        ),
        fault(
            "RAS KERNEL FATAL data TLB error interrupt at {address} on {node}",
            "node {node} stopped with a data TLB error at address {address}",
            "the application used an address that is not mapped, or the memory of {node} is faulty",
            "see whether other jobs failed on {node}",
            "run the memory diagnostics of {node}",
            "debug the application at address {address} if other nodes fail in the same way",
        ),
        fault(
            "RAS KERNEL FATAL machine check interrupt (bit=0x{hex}): L2 dcache unit read return parity error on {node}",
            "node {node} found a parity error in its L2 data cache, bit 0x{hex}",
            "the hardware of {node} is failing",
            "take {node} out of the partition",
            "run diagnostics and replace the card of {node}",
            "restart the job from its last checkpoint",
        ),
        fault(
            "RAS APP FATAL ciod: Error reading message prefix on CioStream socket to {ip}:{port}, Link has been severed",
            "the I/O daemon lost its socket to {ip}:{port}",
            "the service node at {ip} closed the link, or the network to it failed",
            "test the functional network to {ip}",
            "check the daemon that listens on {ip}:{port}",
            "restart the job when the link is stable",
        ),
    ),
    "Android": (
        normal(
            "I/PowerManagerService( {pid}): Going to sleep by user request (uid {uid})...",
            "the device is going to sleep because the process with uid {uid} asked for it",
            "the user pressed the power button or an application with uid {uid} requested it",
        ),
        normal(
            "I/ActivityManager( {pid}): Displayed {package}/.MainActivity: +{fast_ms}ms",
            "the main screen of {package} was displayed after {fast_ms} ms",
            "the user started {package}",
        ),
        normal(
            "D/WindowManager( {pid}): Relayout of Window {{{hex} u0 {package}}}: viewVisibility={index}",
            "the window {hex} of {package} was laid out again with visibility {index}",
            "the content or the visibility of the window changed",
        ),
        fault(
            "E/ActivityManager( {pid}): ANR in {package} (pid {app_pid}): Input dispatching timed out after {slow_ms}ms",
            "{package} did not react to input for {slow_ms} ms",
            "the main thread of {package} was blocked by long work, a lock or slow storage",
            "read the stack of process {app_pid} in traces.txt",
            "move long work of {package} off its main thread",
            "look for heavy load on the device at that time",
        ),
        fault(
            "W/lowmemorykiller( {pid}): Killing '{package}' ({app_pid}), adj {fails}, to free {mib}kB because cache is below limit",
            "the low memory killer ended {package} to free {mib} kB",
            "the running applications use nearly all memory of the device",
            "find the applications that use most memory with dumpsys meminfo",
            "reduce the background work of {package}",
            "raise the cache limits only if memory is really free",
        ),
    ),
    "OpenStack": (
        normal(
            "INFO nova.compute.manager [req-{uuid}] [instance: {vm_uuid}] VM Started (Lifecycle Event)",
            "instance {vm_uuid} has started",
            "request {uuid} created or resumed the instance",
        ),
        normal(
            'INFO nova.osapi_compute.wsgi.server [req-{uuid}] {ip} "GET /v2/servers/detail HTTP/1.1" status: 200 len: {size} time: 0.{fast_ms}',
            "the API answered a server list request of {ip} with status 200 and {size} bytes",
            "a client or the dashboard at {ip} polls the list of servers",
        ),
        normal(
            "INFO nova.compute.claims [req-{uuid}] [instance: {vm_uuid}] Total memory: {total_mib} MB, used: {used_mib}.00 MB",
            "the claim for instance {vm_uuid} found {used_mib} MB of {total_mib} MB in use",
            "the scheduler chose this host for the instance and its resources are being reserved",
        ),
        fault(
            "ERROR nova.compute.manager [req-{uuid}] [instance: {vm_uuid}] Build of instance aborted: Image {image} is unacceptable: Image not found",
            "instance {vm_uuid} could not be built because image {image} was not found",
            "image {image} was deleted from Glance or its name is wrong in the request",
            "list the images of Glance and look for {image}",
            "upload {image} again or correct the request {uuid}",
            "delete the failed instance {vm_uuid}",
        ),
        fault(
            "WARNING nova.virt.libvirt.imagecache [req-{uuid}] Unknown base file: {dir_path}/{hex}",
            "the image cache found the base file {hex} in {dir_path}, which no image accounts for",
            "an image was deleted while its base file stayed in the cache",
            "confirm that no instance uses the base file {hex}",
            "let the cache manager remove it when its age limit is reached",
            "check the free space of {dir_path}",
        ),
    ),
    "Windows": (
        normal(
            "CBS    Loaded Servicing Stack v6.1.7601.{build} with Core: C:\\Windows\\winsxs\\{hex}\\cbscore.dll",
            "the servicing stack 6.1.7601.{build} was loaded",
            "Windows Update or the installer began a servicing session",
        ),
        normal(
            "CSI    {hex}@{day} CSI Transaction @0x{address_hex} initialized for deployment engine",
            "servicing transaction 0x{address_hex} was initialized",
            "a package is about to be installed or removed",
        ),
        fault(
            "CBS    Failed to internally open package. [HRESULT = 0x800f0805 - CBS_E_INVALID_PACKAGE] KB{build}",
            "the update package KB{build} could not be opened because it is not valid",
            "the package KB{build} is damaged or does not fit this version of Windows",
            "download the package KB{build} again",
            "run DISM with RestoreHealth to repair the component store",
            "confirm that KB{build} is meant for this version",
        ),
        fault(
            "CBS    Warning: Unrecognized packageExtended attribute in package KB{build}, session {number}_{day}",
            "session {number} met an attribute that it does not know in package KB{build}",
            "the servicing stack is older than the package KB{build}",
            "install the newest servicing stack update",
            "install KB{build} again afterwards",
            "ignore the warning if KB{build} is installed",
        ),
        fault(
            "Service Control Manager: The {process} service terminated unexpectedly. It has done this {fails} time(s).",
            "the {process} service ended unexpectedly for the {fails}th time",
            "the {process} service crashes, by a fault of its own, a missing file or a lack of memory",
            "read the application event log for the crash of {process}",
            "update or reinstall the {process} service",
            "set its recovery action to restart",
        ),
    ),
    "Mac": (
        normal(
            "kernel[0]: ARPT: {number}.{build}: wl0: setup_keepalive: Local port: {port}, Remote port: 443",
            "the Wi-Fi driver set up a keep-alive from local port {port} to remote port 443",
            "the computer is about to sleep and keeps its connection to the push service",
        ),
        normal(
            "com.apple.cts[{pid}]: com.apple.SoftwareUpdate.Activity: scheduler_evaluate_activity told me to run this job in {sec} seconds",
            "the software update check is scheduled in {sec} seconds",
            "the activity scheduler found that the conditions for the check are met",
        ),
        fault(
            "kernel[0]: AppleThunderboltNHIType2::waitForOk2Go2Sx - intel_rp_status = 0x{hex} and did not become ok after {slow_ms} ms",
            "the Thunderbolt controller was not ready to sleep after {slow_ms} ms, status 0x{hex}",
            "a Thunderbolt device or its cable delays the change of the power state",
            "disconnect the Thunderbolt devices and try to sleep again",
            "update the firmware of the devices",
            "reset the system management controller",
        ),
        fault(
            "WindowServer[{pid}]: send_datagram_available_ping: pid {app_pid} ({process}) failed to act on a ping it dequeued before timing out.",
            "{process} with pid {app_pid} did not answer a ping of the window server",
            "{process} hangs or is busy on its main thread",
            "sample process {app_pid} to see where it waits",
            "quit and reopen {process}",
            "update {process} if it hangs often",
        ),
        fault(
            "sandboxd[{pid}]: {process}({app_pid}) deny file-read-data {dir_path}",
            "the sandbox kept {process} from reading {dir_path}",
            "{process} has no permission for {dir_path}",
            "decide whether {process} needs {dir_path} at all",
            "grant the permission in the privacy settings if it does",
            "report the denial to the maker of {process}",
        ),
    ),
    "Kubernetes": (
        normal(
            'I kubelet.go: "SyncLoop ADD" source="api" pods=["{namespace}/{pod}"]',
            "the kubelet was given pod {pod} of namespace {namespace}",
            "the scheduler placed {pod} on this node",
        ),
        normal(
            'I event.go: "Event occurred" object="{namespace}/{pod}" reason="Pulled" message="Successfully pulled image {image} in {fast_ms}ms"',
            "the image {image} for pod {pod} was pulled in {fast_ms} ms",
            "the image was not yet on the node, or its pull policy is Always",
        ),
        fault(
            'E pod_workers.go: "Error syncing pod, skipping" err="CrashLoopBackOff: back-off {sec}s restarting failed container={process}" pod="{namespace}/{pod}"',
            "container {process} of pod {pod} keeps failing and waits {sec} s before its next restart",
            "the program in container {process} exits with an error soon after its start",
            "read the log of the previous container with kubectl logs --previous",
            "describe pod {pod} in namespace {namespace} and read its events",
            "correct the configuration or the image of {process} and roll it out again",
        ),
        fault(
            'W eviction_manager.go: "Eviction manager: attempting to reclaim" resourceName="memory" available={mib}Mi pod="{namespace}/{pod}"',
            "the node has {mib} MiB of memory left and may evict pod {pod}",
            "the pods of this node use more memory than they requested",
            "set memory requests and limits for {pod}",
            "find the pods that use most memory with kubectl top",
            "add a node or move {pod} to another one",
        ),
        fault(
            'E prober.go: "Probe errored" probeType="Readiness" pod="{namespace}/{pod}" err="Get http://{ip}:{port}/healthz: context deadline exceeded"',
            "the readiness probe of pod {pod} at {ip}:{port} timed out",
            "the application in {pod} is overloaded, still starting, or does not listen on port {port}",
            "request http://{ip}:{port}/healthz from the node",
            "raise timeoutSeconds or initialDelaySeconds of the probe",
            "check the processor limit of {pod}",
        ),
    ),
    "PostgreSQL": (
        normal(
            "[{pid}] LOG:  checkpoint complete: wrote {number} buffers ({percent}%); write={sec} s",
            "a checkpoint wrote {number} buffers, {percent} percent of all, in {sec} seconds",
            "the checkpoint interval was over or enough log had been written",
        ),
        normal(
            "[{pid}] LOG:  connection authorized: user={user} database={database} host={ip}",
            "user {user} connected to the database {database} from {ip}",
            "an application or a person at {ip} opened a session with valid credentials",
        ),
        fault(
            '[{pid}] FATAL:  password authentication failed for user "{user}" from {ip}',
            "a login as {user} from {ip} failed because of a wrong password",
            "an application at {ip} has an outdated password, or somebody is guessing",
            "compare the password that the application at {ip} uses with that of {user}",
            "restrict {ip} in pg_hba.conf if it is not known",
            "rotate the password of {user}",
        ),
        fault(
            "[{pid}] ERROR:  deadlock detected: process {app_pid} waits for ShareLock on transaction {number}; blocked by process {other_pid}, database {database}",
            "the processes {app_pid} and {other_pid} blocked each other in the database {database}",
            "two transactions locked the same rows in a different order",
            "see which statements processes {app_pid} and {other_pid} ran",
            "lock the rows in the same order everywhere",
            "let the application repeat a transaction that was rolled back",
        ),
        fault(
            "[{pid}] LOG:  duration: {slow_ms} ms  statement: SELECT * FROM {table} WHERE id = {number}",
            "a query of the table {table} took {slow_ms} ms",
            "the table {table} has no fitting index or its statistics are out of date",
            "run EXPLAIN ANALYZE for the query of {table}",
            "create an index on the id column of {table}",
            "run ANALYZE on {table}",
        ),
        fault(
            '[{pid}] PANIC:  could not write to file "{dir_path}/xlogtemp.{app_pid}": No space left on device',
            "the server stopped because there is no space left for its log in {dir_path}",
            "the volume of {dir_path} is full, often through a stalled replication slot or archive",
            "free space on the volume of {dir_path} or enlarge it",
            "look for replication slots that hold back old log files",
            "set an alarm for the free space of {dir_path}",
        ),
    ),
    "nginx": (
        normal(
            '{ip} - {user} "GET {url} HTTP/1.1" 200 {size} rt=0.{fast_ms}',
            "the server answered the request of {ip} for {url} with status 200 and {size} bytes",
            "the client asked for {url}, which exists and is allowed",
        ),
        normal(
            "[notice] {pid}#0: signal process started, gracefully shutting down worker {index}",
            "the master told worker {index} to finish its requests and stop",
            "the configuration was reloaded or the server is being stopped",
        ),
        fault(
            '[error] {pid}#0: *{number} upstream timed out (110: Connection timed out) while reading response header from upstream, client: {ip}, request: "GET {url}", upstream: "http://{up_ip}:{port}"',
            "the upstream {up_ip}:{port} did not answer the request for {url} of client {ip} in time",
            "the application at {up_ip}:{port} is overloaded or waits for something slow",
            "look at the load and the log of {up_ip}",
            "find out why {url} is slow",
            "raise proxy_read_timeout only if {url} is slow by nature",
        ),
        fault(
            '[error] {pid}#0: *{number} connect() failed (111: Connection refused) while connecting to upstream, client: {ip}, upstream: "http://{up_ip}:{port}"',
            "the upstream {up_ip} refused the connection on port {port}",
            "no process listens on port {port} of {up_ip}, as it is stopped or was moved",
            "start the application on {up_ip} and check that it listens on port {port}",
            "correct the upstream block if the port has changed",
            "add a second upstream so that one may fail",
        ),
        fault(
            "[crit] {pid}#0: *{number} SSL_do_handshake() failed (SSL: error:{hex}:SSL routines:no suitable protocol) while SSL handshaking, client: {ip}",
            "the TLS handshake with client {ip} failed because no protocol fits both sides",
            "the client at {ip} only offers old protocols, or it is a scanner",
            "see which protocols ssl_protocols allows",
            "ask the owner of {ip} to update the client",
            "ignore the message if {ip} is a scanner",
        ),
        fault(
            "[alert] {pid}#0: {limit} worker_connections are not enough, client: {ip}",
            "the worker has used all of its {limit} connections when {ip} connected",
            "there are more clients than the limit of {limit} allows, by real load or an attack",
            "raise worker_connections above {limit} and the limit of open files",
            "see whether a few addresses such as {ip} hold most connections",
            "shorten keepalive_timeout",
        ),
    ),
}
