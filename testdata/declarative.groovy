// Runs a Jenkinsfile with as much of Jenkins' declarative language as the examples
// speak: each shell script is printed and ended by a 0, and what stands where it
// may not is an error.
import org.codehaus.groovy.control.CompilerConfiguration

abstract class Declarative extends Script {
    static final within = [
        pipeline: ['agent', 'options', 'environment', 'stages'], agent: ['label'], options: ['timeout'],
        stages: ['stage'], stage: ['steps'], steps: ['sh', 'withCredentials'], withCredentials: ['sh'],
    ]
    static final takes = [
        timeout: ['time', 'unit'], file: ['credentialsId', 'variable'], string: ['credentialsId', 'variable'],
        usernamePassword: ['credentialsId', 'usernameVariable', 'passwordVariable'],
    ]
    def env = [TAG_NAME: null, GIT_COMMIT: 'c0ffee'], inside = []

    def methodMissing(String name, args) {
        def at = inside ? inside[-1] : null
        if (takes[name]) {
            assert args.length == 1 && args[0].keySet() == takes[name] as Set : name
            return name
        }
        assert at ? within[at]?.contains(name) : name == 'pipeline' : "$name in $at"
        if (args[-1] instanceof Closure) {
            inside << name
            args[-1].delegate = this
            args[-1].resolveStrategy = Closure.DELEGATE_FIRST
            args[-1]()
            inside.pop()
        } else if (name == 'sh') print args[0] + '\0'
    }
    void setProperty(String name, value) {
        if (!inside) { super.setProperty(name, value); return }
        assert inside[-1] == 'environment' : name
    }
}
def c = new CompilerConfiguration(scriptBaseClass: Declarative.name)
new GroovyShell(Declarative.classLoader, new Binding(), c).evaluate(new File(args[0]))
